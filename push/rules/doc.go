// Package rules is the push rule engine: which events notify a user, and how.
//
// A user's rules are the predefined rules of the specification with an [Overlay] of what the
// user added or changed. [Compile] turns them into a [Compiled] once per version; [Prepare] looks
// at an event once for all the users of its room; [Compiled.Evaluate] joins the two with the
// facts of the room at the event ([Room]) and gives the [Actions] of the first rule that matches.
//
// The package is pure: no clock, no database, no network. Its values are immutable once made
// (an Overlay until its owner shares it) and safe for use by several goroutines.
//
// spec: client-server-api v1.19 "Push Notifications"
package rules
