package main

import (
	"fmt"

	"github.com/myelin-im/myelin/homeserver"
)

// room looks after rooms.
type room struct {
	Recheck roomRecheck `cmd:"" help:"Work out the current state of a room again, and put it right if it is wrong."`
}

type roomRecheck struct {
	RoomID string `arg:"" name:"room-id" help:"ID of the room: !abc:example.org, or !abc from room version 12 on."`
}

// Run checks a room.
func (c *roomRecheck) Run(env *environment) error {
	return withAdmin(env, func(admin *homeserver.Admin) error {
		changed, err := admin.RecheckRoom(env, c.RoomID)
		if err != nil {
			return err
		}
		if len(changed) == 0 {
			fmt.Fprintf(env.stdout, "the state of %s is right\n", c.RoomID)
			return nil
		}
		fmt.Fprintf(env.stdout, "put right in the state of %s:\n", c.RoomID)
		for _, key := range changed {
			fmt.Fprintf(env.stdout, "  %s\n", key)
		}
		return nil
	})
}
