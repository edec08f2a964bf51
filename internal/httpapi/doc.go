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
//	body:"raw"            json.RawMessage with the whole body; default:"{}" lets it be empty
//	required:"true"       400 M_MISSING_PARAM without it (a JSON null counts as missing)
//	default:"10"          for queries and headers
//	min:"0" max:"100"     for integers of queries and headers
//	enum:"b|f"            for strings of queries and headers
//
// Structs may be embedded. Errors: a parameter that cannot be read or is out of range is
// 400 M_INVALID_PARAM; a body that is no JSON or no UTF-8 400 M_NOT_JSON; JSON of another shape
// 400 M_BAD_JSON with the field's name; a body over the endpoint's bound 413 M_TOO_LARGE.
// An empty body counts as {} unless the whole body is asked for.
// Of a repeated query parameter the first one counts, of a repeated member the last one. Bodies may
// be nested 100 deep, those of servers 10,000 deep.
//
// # Paths
//
// A wildcard takes one segment, percent-decoded once, so that "%2F" stays within it. It does not match
// an empty segment, except {stateKey} at the end of a path, which may be missing with its slash. Before a
// handler runs, wildcards are checked by name, with 400 M_INVALID_PARAM:
//
//	userId          "@", up to 255 bytes, no NUL, a server name after the first colon
//	roomId          "!" and more, up to 255 bytes, no NUL
//	eventId         "$" and more, up to 255 bytes, no NUL
//	roomAlias       "#", up to 255 bytes, no NUL, a server name after the first colon
//	roomIdOrAlias   one of the two
//	serverName      the characters of a server name, up to 255 bytes
//	others          UTF-8, up to 2,048 bytes
//
// # Order
//
// Who may call comes first, then the limit, the path, the body, query and headers. For servers the body
// is read first, since their signature covers it.
//
// # Answers
//
// Every answer has the CORS headers and an X-Request-Id, under which failures are logged. OPTIONS is
// answered for every path, HEAD by the endpoint for GET. An unknown path is 404 M_UNRECOGNIZED, an
// unknown method of a known one 405 M_UNRECOGNIZED. An mxerr.Error is answered as it says; one without
// a Code has only its Fields, as user-interactive authentication wants it. What Config.Unavailable
// knows is 503 M_UNKNOWN with Retry-After. Any other error and a panic are logged as a 500 M_UNKNOWN.
package httpapi
