"""A proof or a comparison as a page of HTML and as words: pictures, tables, sentences."""
