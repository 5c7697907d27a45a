"""A Report as text: for the terminal, for a notebook, and into files. A renderer never sees a tensor."""
