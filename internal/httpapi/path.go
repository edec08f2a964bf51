package httpapi

// maxParams bounds the wildcards of one path.
const maxParams = 6
