"""Pods on Kubernetes."""
