"""The prefixes that tell the kinds of bearer tokens apart."""

API_KEY = "sk_"
# The beginning of a JWT's header, `{"`, in base64url.
JWT = "eyJ"
