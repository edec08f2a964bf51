package main

import (
	"fmt"

	"github.com/myelin-im/myelin/homeserver"
)

type key struct {
	Rotate keyRotate `cmd:"" help:"Give the stopped server another signing key. The one before remains valid for what it signed."`
}

type keyRotate struct{}

// Run makes a new signing key.
func (keyRotate) Run(env *environment) error {
	cfg, err := env.load()
	if err != nil {
		return err
	}
	newID, oldID, err := homeserver.RotateKey(env, cfg)
	if err != nil {
		return err
	}
	fmt.Fprintf(env.stdout, "The server signs with %s from its next start on; %s is an old key now.\n", newID, oldID)
	return nil
}
