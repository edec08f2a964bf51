// Package clientapi serves the client-server endpoints that change rooms: creating, joining and leaving them,
// sending events and state, redacting, aliases. It decodes and checks requests and leaves the deed to
// the roomserver. What only reads rooms is in syncapi.
//
// Spec: client-server API v1.19, "Rooms", "Sending events to a room", "Room membership".
package clientapi
