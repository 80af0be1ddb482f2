"""What the commands for people and scripts do; `server.__main__` declares them."""
