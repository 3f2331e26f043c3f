"""`cola report`: one self-contained HTML page of what runs made."""
