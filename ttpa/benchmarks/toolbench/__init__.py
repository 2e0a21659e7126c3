"""ToolBench and StableToolBench: finished answers scored with a language model as judge."""
