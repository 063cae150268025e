"""The release, as it registers itself in the table of replicas."""

VERSION = "0.1.0"
