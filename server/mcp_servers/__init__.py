"""MCP servers that agents get tools from: kept connected, kept apart, and kept from doing harm.

settings.py      the file that MCP_SERVERS names
mcp_servers.py   all of them: opened and closed together, offered to agents, told of in health
plugged.py       one of them as an agent sees it: a list of tools that is there at once, and calls that end in time
supervisor.py    keeps one connected: connects in the background, notices that it broke off, connects again
connection.py    an open session with one
child.py         a server that is a child process
http.py          a server at a URL, also with a user's own credentials
offered_tools.py which of the tools that a server lists are offered, and in which form
results.py       what a call gave, as a model may be told
caller.py        for whom a tool is called
for_the_assistant.py  those of the default assistant
in_process.py    a server of our own, without a connection
"""
