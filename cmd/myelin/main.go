// Command myelin runs a Matrix homeserver, and administers one.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"text/tabwriter"

	"github.com/alecthomas/kong"

	"github.com/myelin-im/myelin/homeserver"
	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/internal/garbage"
)

// version is set by the linker in releases.
var version = ""

// commands are what the command line understands.
type commands struct {
	Config string `short:"c" env:"MYELIN_CONFIG" placeholder:"FILE" help:"Configuration file; without it, myelin.yaml in the working directory, if there is one."`

	Serve    serve         `cmd:"" default:"1" help:"Run the server (the default)."`
	Settings configuration `cmd:"" name:"config" help:"Check or print the configuration."`
	User     user          `cmd:"" help:"Manage accounts, of a running or a stopped server."`
	Room     room          `cmd:"" help:"Look after rooms, of a running or a stopped server."`
	Key      key           `cmd:"" help:"Manage the signing key."`
	Routes   routes        `cmd:"" help:"Print the table of endpoints: method, path, who may call, rate-limit class."`
	Version  versionOf     `cmd:"" help:"Print the version."`
}

// environment is the world outside, so that tests can bring their own.
type environment struct {
	context.Context
	stdin          io.Reader
	stdout, stderr io.Writer
	variables      []string // "NAME=value"
	config         string   // --config
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(&environment{Context: ctx, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, variables: os.Environ()}, os.Args[1:]))
}

// run executes a command line and returns the exit status: 1 for a failure, 2 for a command line that is not understood.
func run(env *environment, arguments []string) (status int) {
	var c commands
	exited := -1
	parser, err := kong.New(&c, kong.Name("myelin"), kong.Description("A Matrix homeserver."), kong.UsageOnError(),
		kong.Writers(env.stdout, env.stderr), kong.Exit(func(code int) { exited = code }))
	if err != nil {
		panic(err) // the declarations above are wrong
	}
	command, err := parser.Parse(arguments)
	if exited >= 0 { // --help
		return exited
	}
	if err != nil {
		fmt.Fprintf(env.stderr, "myelin: %v\n", err)
		return 2
	}
	env.config = c.Config
	if err := command.Run(env); err != nil {
		fmt.Fprintf(env.stderr, "myelin: %v\n", err)
		return 1
	}
	return 0
}

// configFile is the configuration file to read, or empty.
func (env *environment) configFile() string {
	const usual = "myelin.yaml"
	if env.config != "" {
		return env.config
	}
	if _, err := os.Stat(usual); errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return usual
}

func (env *environment) load() (*config.Config, error) {
	cfg, err := config.Load(env.configFile(), env.variables)
	if err != nil {
		return nil, fmt.Errorf("the configuration is wrong:\n%w", err)
	}
	return cfg, nil
}

// check looks at the files that the configuration names.
func check(cfg *config.Config) error {
	if err := homeserver.Check(cfg); err != nil {
		return fmt.Errorf("the configuration is wrong:\n%w", err)
	}
	return nil
}

type serve struct{}

// Run serves until the process is asked to stop.
func (serve) Run(env *environment) error {
	cfg, err := env.load()
	if err != nil {
		return err
	}
	if err := check(cfg); err != nil {
		return err
	}
	server, err := homeserver.New(env, cfg, homeserver.NewLogger(cfg.Logging, env.stderr))
	if err != nil {
		return err
	}
	var greetErr error
	garbage.Pace()
	err = server.Run(env, func() { greetErr = greet(env, server) })
	return errors.Join(greetErr, err)
}

// greet tells the operator where the server is, even if it has been asked to stop already.
func greet(env *environment, server *homeserver.Server) error {
	greeting, err := server.Greeting(context.WithoutCancel(env))
	if err != nil {
		return err
	}
	_, err = io.WriteString(env.stdout, greeting)
	return err
}

type configuration struct {
	Check configCheck `cmd:"" help:"Say what is wrong with the configuration."`
	Print configPrint `cmd:"" help:"Print the configuration with all defaults and explanations, without secrets."`
}

type configCheck struct{}

// Run checks the configuration.
func (configCheck) Run(env *environment) error {
	cfg, err := env.load()
	if err != nil {
		return err
	}
	if err := check(cfg); err != nil {
		return err
	}
	fmt.Fprintln(env.stdout, "The configuration is right.")
	return nil
}

type configPrint struct{}

// Run prints the configuration.
func (configPrint) Run(env *environment) error {
	cfg, err := env.load()
	if err != nil {
		return err
	}
	_, err = io.WriteString(env.stdout, cfg.YAML())
	return err
}

type routes struct{}

// Run prints the table of endpoints.
func (routes) Run(env *environment) error {
	table := tabwriter.NewWriter(env.stdout, 0, 0, 2, ' ', 0)
	for _, row := range homeserver.Routes() {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", row.Method, row.Path, row.Who, row.Class)
	}
	return table.Flush()
}

type versionOf struct{}

// Run prints the version.
func (versionOf) Run(env *environment) error {
	_, err := fmt.Fprintf(env.stdout, "myelin %s %s %s/%s\n", buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

// buildVersion is what the linker was told, or what the toolchain knows of the source.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
