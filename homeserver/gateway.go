package homeserver

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/push/gateway"
	"github.com/myelin-im/myelin/push/pushers"
)

// newGateway sets up the push gateway that this server brings along.
func newGateway(cfg *config.Config, log *logrus.Entry) (*gateway.Gateway, error) {
	vapid, err := gateway.LoadVAPID(filepath.Join(cfg.Server.DataDir, "web_push.key"))
	if err != nil {
		return nil, err
	}
	if vapid.Contact = cfg.Push.Contact; vapid.Contact == "" {
		vapid.Contact = "https://" + cfg.Server.Name
	}
	c, err := gatewayConfig(cfg)
	if err != nil {
		return nil, err
	}
	c.VAPID, c.Log = vapid, log
	return gateway.New(c)
}

// gatewayConfig reads what the configuration says about the push gateway, which is all but the key for browsers.
func gatewayConfig(cfg *config.Config) (gateway.Config, error) {
	p := cfg.Push
	c := gateway.Config{WebPushApps: p.WebPushApps, HTTP: pushers.NewHTTPClient(p.AllowPrivateAddresses)}
	if p.APNs.AppID != "" {
		key, err := os.ReadFile(p.APNs.Key)
		if err != nil {
			return c, fmt.Errorf("read push.apns_key: %w", err)
		}
		c.APNs = &gateway.APNsConfig{
			AppID: p.APNs.AppID, Topic: p.APNs.Topic, Key: key, KeyID: p.APNs.KeyID, TeamID: p.APNs.TeamID, Sandbox: p.APNs.Sandbox,
		}
	}
	if p.FCM.AppID != "" {
		account, err := os.ReadFile(p.FCM.ServiceAccount)
		if err != nil {
			return c, fmt.Errorf("read push.fcm_service_account: %w", err)
		}
		c.FCM = &gateway.FCMConfig{AppID: p.FCM.AppID, ServiceAccount: account}
	}
	return c, nil
}
