"""The tables of published work, redone: which rows there are, how each is made, and the page about them."""
