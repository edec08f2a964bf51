package homeserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/storage"
)

// Admin does what the operator asks for on the command line: through the running server if there is one, else on
// the database.
type Admin struct {
	serverName string
	running    *controlClient       // nil: the server is not running
	db         *storage.DB          // nil: the server is running
	operations map[string]operation // of the database
}

// OpenAdmin finds the running server of the configured data folder, or opens the database of a stopped one. It makes
// nothing: without a database, its error is storage.ErrMissing.
func OpenAdmin(ctx context.Context, cfg *config.Config, log *logrus.Logger) (*Admin, error) {
	a := &Admin{serverName: cfg.Server.Name, running: dialControl(ctx, cfg.Server.DataDir)}
	if a.running != nil {
		return a, nil
	}
	options := databaseOptions(cfg, log)
	options.Existing = true
	var err error
	if a.db, err = storage.Open(ctx, options, schemas...); err != nil {
		return nil, adviseDatabase(cfg, err)
	}
	key, err := openKey(ctx, cfg, a.db)
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	f, err := newFeatures(cfg, a.db, key, ratelimit.New(cfg.RateLimits), log)
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	a.operations = f.operations()
	return a, nil
}

// Close ends the use of the server or its database.
func (a *Admin) Close() error {
	if a.db == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	return a.db.Close(ctx)
}

// User is what Users tells of an account.
type User struct {
	UserID  string
	Created time.Time
	Marks   []string // what is special about it: "admin", "deactivated" and so on
}

// CreateUser makes an account. The name is a localpart or user ID, as in all operations.
func (a *Admin) CreateUser(ctx context.Context, name, password string, admin bool) (userID string, err error) {
	return a.change(ctx, "create-user", change{Name: name, Password: password, Flag: admin})
}

// SetPassword sets a password and logs the account out everywhere.
func (a *Admin) SetPassword(ctx context.Context, name, password string) (userID string, err error) {
	return a.change(ctx, "set-password", change{Name: name, Password: password})
}

// Deactivate ends an account for good; with erase, everything of it that is not an event is deleted as well. If the
// server is stopped, it leaves the account's rooms when it next runs.
func (a *Admin) Deactivate(ctx context.Context, name string, erase bool) (userID string, err error) {
	return a.change(ctx, "deactivate", change{Name: name, Flag: erase})
}

// SetAdmin makes an account an administrator, or no longer.
func (a *Admin) SetAdmin(ctx context.Context, name string, admin bool) (userID string, err error) {
	return a.change(ctx, "set-admin", change{Name: name, Flag: admin})
}

// CreateRegistrationToken makes a token with which strangers may register where a token is asked for: so many accounts (0:
// any number), for so long (0: without end).
func (a *Admin) CreateRegistrationToken(ctx context.Context, uses int64, valid time.Duration) (token string, err error) {
	t := accounts.RegistrationToken{UsesAllowed: uses}
	if valid > 0 {
		t.ExpiresMS = time.Now().Add(valid).UnixMilli()
	}
	err = a.run(ctx, "create-registration-token", t, &token)
	return token, err
}

// RecheckRoom works out the current state of a room again and puts it right. It returns what was wrong: types and state
// keys.
func (a *Admin) RecheckRoom(ctx context.Context, roomID string) (changed []string, err error) {
	err = a.run(ctx, "recheck-room", roomID, &changed)
	return changed, err
}

// Users lists all accounts by user ID.
func (a *Admin) Users(ctx context.Context) ([]User, error) {
	var all []User
	for {
		var after string
		if len(all) > 0 {
			after = all[len(all)-1].UserID
		}
		var page []accounts.User
		if err := a.run(ctx, "users", after, &page); err != nil || len(page) == 0 {
			return all, err
		}
		for _, u := range page {
			all = append(all, User{UserID: u.UserID, Created: time.UnixMilli(u.CreatedMS), Marks: marks(&u)})
		}
	}
}

func marks(u *accounts.User) []string {
	var marks []string
	for _, mark := range []struct {
		set  bool
		name string
	}{
		{u.Admin, "admin"}, {u.Guest, "guest"}, {u.AppserviceID != "", "appservice"}, {u.Type != "", u.Type},
		{u.Locked, "locked"}, {u.Suspended, "suspended"}, {u.Deactivated, "deactivated"}, {u.Erased, "erased"},
	} {
		if mark.set {
			marks = append(marks, mark.name)
		}
	}
	return marks
}

// change is what operations on one account need.
type change struct {
	Name     string
	Password string `json:",omitempty"`
	Flag     bool   // what the operation's bool says
}

// change runs an operation on an account and returns its user ID.
func (a *Admin) change(ctx context.Context, operation string, c change) (userID string, err error) {
	if !strings.HasPrefix(c.Name, "@") {
		c.Name = "@" + c.Name + ":" + a.serverName
	}
	err = a.run(ctx, operation, c, &userID)
	return userID, err
}

// run asks the running server, or does the same on the database.
func (a *Admin) run(ctx context.Context, name string, in, out any) error {
	if a.running != nil {
		return a.running.run(ctx, name, in, out)
	}
	raw, err := json.Marshal(in)
	if err != nil {
		return err
	}
	result, err := a.operations[name](ctx, raw)
	if err != nil {
		return err
	}
	if raw, err = json.Marshal(result); err != nil {
		return err
	}
	return json.Unmarshal(raw, out)
}

const usersPage = 500

// operations are what an operator can ask for.
func (f *features) operations() map[string]operation {
	onAccount := func(do func(ctx context.Context, c change) error) operation {
		return operationOf(func(ctx context.Context, c change) (string, error) { return c.Name, do(ctx, c) })
	}
	return map[string]operation{
		"create-user": operationOf(func(ctx context.Context, c change) (string, error) {
			localpart, domain, _ := strings.Cut(strings.TrimPrefix(c.Name, "@"), ":")
			if domain != f.rooms.Name() {
				return "", fmt.Errorf("%s is not a user of %s", c.Name, f.rooms.Name())
			}
			return f.accounts.CreateUser(ctx, accounts.NewUser{Username: localpart, Password: c.Password, Admin: c.Flag})
		}),
		"set-password":              onAccount(func(ctx context.Context, c change) error { return f.accounts.SetPassword(ctx, c.Name, c.Password) }),
		"deactivate":                onAccount(func(ctx context.Context, c change) error { return f.accounts.Deactivate(ctx, c.Name, c.Flag) }),
		"set-admin":                 onAccount(func(ctx context.Context, c change) error { return f.accounts.SetAdmin(ctx, c.Name, c.Flag) }),
		"create-registration-token": operationOf(f.accounts.CreateRegistrationToken),
		"recheck-room":              operationOf(f.rooms.Recheck),
		"users": operationOf(func(ctx context.Context, after string) ([]accounts.User, error) {
			return f.accounts.Users(ctx, after, usersPage)
		}),
	}
}

// controlHandler serves the operations on the control socket.
func (f *features) controlHandler() http.Handler { return controlHandler(f.operations()) }

// firstToken is the registration token of a server without accounts, or empty.
func (f *features) firstToken(ctx context.Context) (string, error) {
	return f.accounts.FirstAdminToken(ctx)
}
