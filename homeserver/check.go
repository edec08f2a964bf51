package homeserver

import (
	"os/exec"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/push/gateway"
	"github.com/myelin-im/myelin/push/pushers"
)

// Check says what is wrong with the files that a configuration names: registrations of application services, templates
// of e-mails, keys for the services of Apple and Google, programs. config.Load has found the rest. Nothing is changed, and no server
// need be there.
func Check(cfg *config.Config) error {
	var problems config.Problems
	note := func(key string, err error) {
		if err != nil {
			problems = append(problems, cfg.Problem(key, err.Error()))
		}
	}
	_, err := loadAppservices(cfg)
	note("appservices.files", err)
	note("email.templates", accounts.CheckTemplates(cfg.Email.Templates))
	mailer, err := newMailer(cfg)
	note("email.smtp", err)
	if mailer != nil {
		_, err := pushers.NewMails(mailer, cfg.Email.AppName, cfg.Server.Name, cfg.Email.Templates, cfg.Email.UnreadAfter)
		note("email.templates", err)
	}
	note("push", checkGateway(cfg))
	note("media.scan_command", checkProgram(cfg.Media.ScanCommand))
	note("thumbnails.ffmpeg", checkProgram(cfg.Media.Thumbnails.FFmpeg))
	if len(problems) == 0 {
		return nil
	}
	return problems
}

func checkGateway(cfg *config.Config) error {
	c, err := gatewayConfig(cfg)
	if err != nil {
		return err
	}
	_, err = gateway.New(c)
	return err
}

// checkProgram looks for a program that is to be run later; none is all right.
func checkProgram(name string) error {
	if name == "" {
		return nil
	}
	_, err := exec.LookPath(name)
	return err
}
