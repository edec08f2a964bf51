// Package httpapi is the one way to declare an endpoint and to serve it.
//
// An Endpoint states method, path, who may call, the rate-limit class, and a function from a typed
// request to a typed answer. The Router does the rest in one place: routing, CORS, authentication,
// limits, decoding, validation, metrics, logging and Matrix errors.
//
// # Requests
//
// Tags of a request struct's fields:
//
//	path:"roomId"         a wildcard of the path; string types
//	query:"limit"         a query parameter; string types, bool, int, int64, pointers to these
//	                      (nil without the parameter), slices of strings (repeated, at most 100)
//	header:"X-Thing"      a header; the same types
//	json:"name"           a top-level member of the body, matched exactly; any type of encoding/json
//	body:"raw"            json.RawMessage with the whole body
//	required:"true"       400 M_MISSING_PARAM without it (a JSON null counts as missing)
//	default:"10"          for queries and headers
//	min:"0" max:"100"     for integers of queries and headers
//	enum:"b|f"            for strings of queries and headers
//
// Structs may be embedded. Errors: a parameter that cannot be read or is out of range is
// 400 M_INVALID_PARAM; a body that is no JSON or no UTF-8 400 M_NOT_JSON; JSON of another shape
// 400 M_BAD_JSON with the field's name; a body over the endpoint's bound 413 M_TOO_LARGE.
// An empty body counts as {} unless the whole body is asked for or the endpoint says BodyRequired.
// Query parameters: the first one counts.
package httpapi
