"""A generation kept pass by pass, and a page that plays it again."""
