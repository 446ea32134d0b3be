"""What a log adds up to, block by block, in bounded memory."""
