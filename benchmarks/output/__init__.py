"""Result rows, tables and plots."""
