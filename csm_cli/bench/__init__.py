"""What `csm bench` measures: speed, start-up, batch overhead, voice quality and training."""
