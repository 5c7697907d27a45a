"""The pages of the reference, written from the code whenever the site is built: complete by construction."""
