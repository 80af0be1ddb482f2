"""The version of the distribution. Every other place reads it from here."""

VERSION = "0.1.0"
