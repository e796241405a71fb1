"""`moorage download`: files of a repository or a URL, verified, in a folder of a volume.

main      options, exit code                     wire      blocking HTTP: connections, TLS, proxies, host rules
run       the phases, from plan to publication   source    plan of a hub's repository or of a plain URL
volume    lock, space, folders, publication      content   one file's bytes: where they come from, its pieces
pieces    piece map, its two state files         board     who fetches what next, failures, the end
fetch     one range of one file                  walk      reads what was written in order, hashes, repairs
saver     data to disk, then state               progress  numbers, `GET /progress`
retry     how long to go on without progress     pace      pauses of hosts, bandwidth, stalls
report    the JSON result                        inspect   what a folder holds
proxy     tunnels
"""
