"""Full-text search in a user's threads.

words.py       what a word is: the same as in search_vector(), the SQL function that makes the index
query.py       what somebody types as what PostgreSQL looks for, and as what is marked in what it finds
snippets.py    the passage of a text that shows the matches
statements.py  the one statement that finds a page
search.py      SearchThreads
"""
