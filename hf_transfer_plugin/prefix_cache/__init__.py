"""Pay for the frozen layers once: their activations are stored, and fed to what learns in later epochs."""
