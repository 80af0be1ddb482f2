"""How a bearer token says what it is: how it begins."""

API_KEY = "sk_"
# A JWT: the begin of its header, `{"`, in base64url.
JWT = "eyJ"
