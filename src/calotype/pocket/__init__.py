"""The pocket world: small rendered scenes that the bundled checkpoint learned to draw.

``scene`` (what stands where), ``renderer`` (its picture, depth, normals, ids and edges), ``captions`` and ``prompts``
(what is said of it), ``classifier`` and ``judging`` (what a generated picture shows).
"""
