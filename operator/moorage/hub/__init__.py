"""What the operator reads from model sources over HTTP: commits, file lists, header bytes. Nothing is downloaded here.

    async with HubClient(policy=HostPolicy()) as hub:
        commit = await hub.resolve(repository, access)
        files = await hub.tree(repository, commit, access)
        head = await hub.read_range(repository.file_url(commit, files[0].path), 0, 1 << 20, access)

Every failure is a `moorage.errors.SourceError` whose reason is in `moorage.sources.CATALOG`.
"""

from moorage.hub.client import HubClient, RemoteFile

__all__ = ["HubClient", "RemoteFile"]
