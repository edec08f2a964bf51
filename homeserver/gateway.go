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
	p := cfg.Push
	vapid, err := gateway.LoadVAPID(filepath.Join(cfg.Server.DataDir, "web_push.key"))
	if err != nil {
		return nil, err
	}
	if vapid.Contact = p.Contact; vapid.Contact == "" {
		vapid.Contact = "https://" + cfg.Server.Name
	}
	c := gateway.Config{WebPushApps: p.WebPushApps, VAPID: vapid, HTTP: pushers.NewHTTPClient(p.AllowPrivateAddresses), Log: log}
	if p.APNs.AppID != "" {
		key, err := os.ReadFile(p.APNs.Key)
		if err != nil {
			return nil, fmt.Errorf("read push.apns_key: %w", err)
		}
		c.APNs = &gateway.APNsConfig{
			AppID: p.APNs.AppID, Topic: p.APNs.Topic, Key: key, KeyID: p.APNs.KeyID, TeamID: p.APNs.TeamID, Sandbox: p.APNs.Sandbox,
		}
	}
	if p.FCM.AppID != "" {
		account, err := os.ReadFile(p.FCM.ServiceAccount)
		if err != nil {
			return nil, fmt.Errorf("read push.fcm_service_account: %w", err)
		}
		c.FCM = &gateway.FCMConfig{AppID: p.FCM.AppID, ServiceAccount: account}
	}
	return gateway.New(c)
}
