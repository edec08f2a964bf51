// Package push decides what notifies users, and keeps their push rules.
//
// Package rules below it is the pure rule engine, package counts the counting of what is unread.
//
// # Rules by position
//
// Every change of a user's rules takes a log position and is kept as a version of the user's
// overlay on the predefined rules (table push_rules), so that an event is always judged by the
// rules at its own position: whoever counts again gets the same numbers. Old versions are pruned
// (see keepVersions); what lies before the oldest one kept is judged by that one.
//
// Spec: client-server API v1.19 "Push Notifications".
package push
