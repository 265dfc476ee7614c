"""The models on this machine that the loader offers, and the download of the release."""
