"""What can go wrong, for callers that want to tell it apart.

ClusterError            anything below; its text is for people
+-- BuildError          a component could not be built, or a package is missing
+-- StartError          a component did not become ready; names it, with its last log lines
"""


class ClusterError(Exception):
    """The kit could not do what it was asked to do."""


class BuildError(ClusterError):
    """A component could not be built or a needed program is missing."""


class StartError(ClusterError):
    """A component did not become ready in time."""
