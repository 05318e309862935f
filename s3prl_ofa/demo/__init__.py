"""The demo: its audio, its checkpoint, and SID at several rates through S3PRL."""
