"""The process behind `moorage estimate`: headers of a file, a folder or a repository in, a memory need out."""
