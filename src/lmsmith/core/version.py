"""The version of this package, the one place that says it."""

VERSION = "0.2.0"
