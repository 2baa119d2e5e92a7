"""Records and stored products -> what can be said of them."""
