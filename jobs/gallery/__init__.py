"""The nightly gallery: what a photo gave, versions and the pointer, the gate, one night from start to end."""
