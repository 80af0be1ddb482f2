"""The program in a workspace's pod."""
