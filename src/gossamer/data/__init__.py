"""What experiments read: real texts that need no download, and generated prompts."""
