// Package filter reads the filters with which clients choose what /sync, /messages and /context tell them, and
// answers whether an event, a room or a field passes. It is pure: no storage, no network.
//
// A filter is parsed once into a compiled form, whose matching neither allocates nor reflects, and which may be
// shared between goroutines. Unknown members are ignored, as clients send extensions; members the specification
// names must have its types, else parsing fails with M_BAD_JSON.
//
// Spec: client-server API v1.19, "Filtering" and "Lazy-loading room members". The members related_by_senders,
// related_by_rel_types (MSC3440) and org.matrix.msc3874.rel_types, org.matrix.msc3874.not_rel_types (MSC3874)
// are understood as well.
package filter
