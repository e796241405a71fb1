"""The commands for people: `moorage switch`, `rollback`, `load`, `unload`, and the same as `kubectl moorage ...`.

They act with the person's own rights, through the kubeconfig, as kubectl does. Only they write a spec, because a person
asked; the operator never does.
"""
