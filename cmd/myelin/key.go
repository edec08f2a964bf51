package main

import (
	"fmt"

	"github.com/myelin-im/myelin/homeserver"
)

type key struct {
	Create keyCreate `cmd:"" help:"Make a signing key for the stopped server, which has lost its own. Restore that from a backup instead if you can."`
	Rotate keyRotate `cmd:"" help:"Give the stopped server another signing key. The one before remains valid for what it signed."`
}

type keyCreate struct{}

// Run makes a signing key where there is none.
func (keyCreate) Run(env *environment) error {
	cfg, err := env.load()
	if err != nil {
		return err
	}
	id, err := homeserver.CreateKey(env, cfg)
	if err != nil {
		return err
	}
	fmt.Fprintf(env.stdout, "The server signs with %s from its next start on.\n", id)
	return nil
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
