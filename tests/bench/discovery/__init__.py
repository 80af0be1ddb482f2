"""How Envoy finds workers that come and go: by the DNS, as the service does, and by EDS."""
