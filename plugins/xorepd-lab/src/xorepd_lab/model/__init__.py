"""XAPI's data model, and the objects of one pool: classes, fields, roles, errors and events."""
