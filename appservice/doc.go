// Package appservice knows the application services (bridges and bots) that this server works with: their
// registrations, and which users, aliases and rooms each of them claims.
//
// A registration is a YAML file that the operator passes to the server; it is read once at the start. API tells clients
// which third-party networks are bridged, and lets an application service ask whether this server reaches it.
//
// Spec: application-service API v1.19, "Registration", "Pinging"; client-server API v1.19, "Third-party Networks".
package appservice
