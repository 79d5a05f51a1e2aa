"""Parts of `./dev bench link`: frames, the depth codecs to compare with, both ends of the link, and the peers."""
