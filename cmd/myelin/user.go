package main

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/myelin-im/myelin/homeserver"
)

// user manages accounts. Users are named by localpart (alice) or in full (@alice:example.org).
type user struct {
	Create     userCreate     `cmd:"" help:"Make an account."`
	Passwd     userPasswd     `cmd:"" help:"Give an account another password and log it out everywhere."`
	Deactivate userDeactivate `cmd:"" help:"End an account: it is logged out, leaves all rooms and can never be used again."`
	List       userList       `cmd:"" help:"List the accounts."`
	Admin      userAdmin      `cmd:"" help:"Make an account an administrator, or no longer one."`
	Invite     userInvite     `cmd:"" help:"Make and print a registration token, for registration.require_token."`
}

// password is how a command gets one: never as an argument, which other users of the machine can read.
type password struct {
	Stdin bool `name:"password-stdin" help:"Read the password from standard input. Without this, one is made and printed."`
}

// get returns the password, and the line that tells it if it was made here.
func (p password) get(env *environment) (secret, message string, err error) {
	if !p.Stdin {
		secret = rand.Text()
		return secret, "password: " + secret + "\n", nil
	}
	line, err := bufio.NewReader(env.stdin).ReadString('\n')
	if secret = strings.TrimRight(line, "\r\n"); secret == "" {
		return "", "", errors.Join(errors.New("there is no password on standard input"), err)
	}
	return secret, "", nil
}

// withAdmin runs fn with the running server, or the database of a stopped one.
func withAdmin(env *environment, fn func(*homeserver.Admin) error) error {
	cfg, err := env.load()
	if err != nil {
		return err
	}
	admin, err := homeserver.OpenAdmin(env, cfg, homeserver.NewLogger(cfg.Logging, env.stderr))
	if err != nil {
		return err
	}
	return errors.Join(fn(admin), admin.Close())
}

type userCreate struct {
	Name  string `arg:"" help:"Localpart of the user ID."`
	Admin bool   `help:"Make it an administrator."`
	password
}

// Run makes an account.
func (c *userCreate) Run(env *environment) error {
	secret, message, err := c.get(env)
	if err != nil {
		return err
	}
	return withAdmin(env, func(admin *homeserver.Admin) error {
		id, err := admin.CreateUser(env, c.Name, secret, c.Admin)
		if err == nil {
			fmt.Fprintf(env.stdout, "%s has been made\n%s", id, message)
		}
		return err
	})
}

type userPasswd struct {
	Name string `arg:"" help:"Localpart or user ID."`
	password
}

// Run sets a password.
func (c *userPasswd) Run(env *environment) error {
	secret, message, err := c.get(env)
	if err != nil {
		return err
	}
	return withAdmin(env, func(admin *homeserver.Admin) error {
		id, err := admin.SetPassword(env, c.Name, secret)
		if err == nil {
			fmt.Fprintf(env.stdout, "%s has another password and is logged out\n%s", id, message)
		}
		return err
	})
}

type userDeactivate struct {
	Name  string `arg:"" help:"Localpart or user ID."`
	Erase bool   `help:"Delete everything of it that is not an event: profile, account data, devices."`
}

// Run ends an account.
func (c *userDeactivate) Run(env *environment) error {
	return withAdmin(env, func(admin *homeserver.Admin) error {
		id, err := admin.Deactivate(env, c.Name, c.Erase)
		if err == nil {
			fmt.Fprintf(env.stdout, "%s is deactivated\n", id)
		}
		return err
	})
}

type userList struct{}

// Run lists the accounts.
func (*userList) Run(env *environment) error {
	return withAdmin(env, func(admin *homeserver.Admin) error {
		users, err := admin.Users(env)
		if err != nil {
			return err
		}
		table := tabwriter.NewWriter(env.stdout, 0, 0, 2, ' ', 0)
		for _, u := range users {
			fmt.Fprintf(table, "%s\t%s\t%s\n", u.UserID, u.Created.Format("2006-01-02"), strings.Join(u.Marks, " "))
		}
		return table.Flush()
	})
}

type userAdmin struct {
	Name string `arg:"" help:"Localpart or user ID."`
	No   bool   `name:"revoke" help:"Make it an ordinary account."`
}

// Run makes or unmakes an administrator.
func (c *userAdmin) Run(env *environment) error {
	return withAdmin(env, func(admin *homeserver.Admin) error {
		id, err := admin.SetAdmin(env, c.Name, !c.No)
		if err == nil && c.No {
			fmt.Fprintf(env.stdout, "%s is an ordinary account\n", id)
		} else if err == nil {
			fmt.Fprintf(env.stdout, "%s is an administrator\n", id)
		}
		return err
	})
}

type userInvite struct {
	Uses  int64         `default:"1" help:"How many accounts may be made with it; 0: any number."`
	Valid time.Duration `default:"168h" help:"For how long it can be used, as 24h; 0s: without end."`
}

// Run makes a registration token.
func (c *userInvite) Run(env *environment) error {
	if c.Uses < 0 || c.Valid < 0 {
		return errors.New("neither the uses of a token nor its time can be negative")
	}
	return withAdmin(env, func(admin *homeserver.Admin) error {
		token, err := admin.CreateRegistrationToken(env, c.Uses, c.Valid)
		if err == nil {
			fmt.Fprintln(env.stdout, token)
		}
		return err
	})
}
