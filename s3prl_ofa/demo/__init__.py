"""The demo: speaker identification at several rates through S3PRL, with bundled audio and a bundled checkpoint."""
