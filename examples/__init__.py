"""Things built with Consentier, to read and to start from. No part of the package."""
